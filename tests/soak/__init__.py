"""Tests without an end: each part goes on with fresh seeds for as long as it is given.

A program: `scripts/soak --minutes N`. A part is a module here with a PART, which
`parts.py` names. The suite gives each part one short turn, so that none of them rots.
"""
