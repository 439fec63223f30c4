"""Changes of frozen datasets, made in local files first and sent when they are complete."""
