"""Pages for a browser: plain HTML that works without scripts."""
