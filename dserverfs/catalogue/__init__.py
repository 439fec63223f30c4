"""The known facts of a server's datasets: permissions, listings, names, manifests, metadata.

And how fresh that is, and what of it holds while the server is away.
"""
