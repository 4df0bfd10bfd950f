"""One thin script for each stage of the way from a folder to a served model."""
