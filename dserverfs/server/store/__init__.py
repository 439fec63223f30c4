"""The bytes of the embedded server: its data directory, SeaweedFS, buckets and their layout."""
