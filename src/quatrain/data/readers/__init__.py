"""Readers: from a file to items, one file format a module. Each streams, so a file may be of any size."""
