"""The embedded dserver: dservercore on SQLite, signed URLs, SeaweedFS as the S3 store.

Imports nothing of the client but `dserverfs.model` and `dserverfs.errors`.
"""
