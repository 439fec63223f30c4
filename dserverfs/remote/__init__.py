"""The network: a dserver's routes, and objects of its store by signed URL.

Keeps only connections, tokens and signed URLs.
"""
