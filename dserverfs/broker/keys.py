"""The keys of dtoolcore's primitive layer: paths in dtool's own layout on disk. Pure."""

from __future__ import annotations

README = "README.yml"
ADMIN_METADATA = ".dtool/dtool"
MANIFEST = ".dtool/manifest.json"
STRUCTURE = ".dtool/structure.json"
DTOOL_README = ".dtool/README.txt"
OVERLAYS = ".dtool/overlays"
ANNOTATIONS = ".dtool/annotations"
TAGS = ".dtool/tags"
