"""Scripts of the Makefile: what they do is for those who work on the project."""
