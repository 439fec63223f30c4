"""Proto datasets as real local directories, until they are frozen."""
