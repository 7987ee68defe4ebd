"""The offline side: turns a behaviour log into a release, one file per stage."""
