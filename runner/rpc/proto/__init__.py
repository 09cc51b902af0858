"""Contracts, as .proto files, and the modules generated from them: run `make protos` after a change, edit none."""
