"""The embedded server's datasets and users, in its database and buckets, without HTTP."""
