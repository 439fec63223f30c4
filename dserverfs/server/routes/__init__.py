"""What the embedded server answers beyond dservercore: its extensions, rights and checks."""
