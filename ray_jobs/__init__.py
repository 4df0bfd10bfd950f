"""One thin script for each stage from a raw folder to a served model."""
