"""Files that the server does not have yet: staging, upload, edits of frozen datasets."""
