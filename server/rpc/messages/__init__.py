"""Between messages of the API and values of the core: checked on the way in, filled on the way out."""
