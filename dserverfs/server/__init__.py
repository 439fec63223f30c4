"""The embedded server of `dserverfs serve`: dservercore, SQLite and SeaweedFS.

    serve       composition root: process, signals, waitress
      app       dservercore's Flask app with the plugins below
        search        search plugin (SQLite FTS5)
        retrieve      retrieve plugin (readme, manifest, annotations, tags)
        signed_urls   extension: the /signed-urls routes
          upload_request   the body of an upload, checked
          uploads          pending uploads
          publish          from a pending upload to a frozen dataset
        accounts      extension: POST /token, GET /config/health
        extension     what both extensions have in common
      seaweedfs       the S3 server as a child process
      objects         the store's objects, through one boto3 client
        storage       which store; signed URLs (pure)
        layout        a dataset's keys and texts in a bucket (pure)
      datadir         the data directory: version, lock, secrets

Imports nothing of dserverfs but `model` and `errors`. Everything but the main
thread of `serve` runs in waitress's worker threads.
"""
