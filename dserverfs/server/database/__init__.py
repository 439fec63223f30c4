"""What the embedded server knows of datasets: search, retrieval, uploads, and their freeze."""
