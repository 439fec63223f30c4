"""What a user wrote and the server does not have yet: staging, upload, edits of frozen datasets."""
