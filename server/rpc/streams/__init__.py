"""What a stream of users is made of: its parts, rows, release and slots."""
