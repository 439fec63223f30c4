"""A frozen dataset from local files to the store, through signed URLs."""
