"""Pure parts shared by serving and training: no I/O beyond reading a release, no gRPC, no clock."""
