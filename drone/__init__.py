"""Tells drones from birds, and one kind of drone from another, in images."""
