"""Searching settings: trials that are runs, shared by workers."""
