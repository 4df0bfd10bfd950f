"""Pictures from the web into a raw folder, with a record of where each is from."""
