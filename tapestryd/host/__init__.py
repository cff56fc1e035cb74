"""This machine: its files, clock, processes and people."""
