"""What crosses the network: a dserver's routes, and objects of its store by signed URL.

Keeps nothing but connections, tokens and signed URLs.
"""
