"""The embedded server of `dserverfs serve`: dservercore, SQLite and SeaweedFS.

    serve       composition root: process, signals, waitress
      web            the web server and the app's first user
        bodies            requests as waitress reads them, each with its limit
          request_limits  which (pure)
      app       dservercore's Flask app with the plugins below
        search        search plugin (SQLite FTS5)
        retrieve      retrieve plugin (readme, manifest, annotations, tags)
        signed_urls   extension: the /signed-urls routes
          upload_request   the body of an upload, checked
          uploads          pending uploads
          upload_place     where in its bucket one goes
          freeze           from a pending upload to a frozen dataset
        metadata      extension: changes of README, tags, annotations, overlays, name
          changes          in the bucket and in the database, whatever stops them
          indexing         from a dataset in a bucket to the database
        publications  extension: links by which dtool-http reads a dataset
        accounts      extension: POST /token, GET /config/health
          tokens           given out, and taken back
          guesses          how often a password may be wrong
        request_check what every request is refused for
        extension     what the extensions have in common
      stores          which store holds a base URI, where in it a dataset is
      seaweedfs       the S3 server as a child process
      stored_metadata what of a dataset in a bucket can change
      objects         a store's objects, through one boto3 client
        storage       which store; signed URLs (pure)
        layout        a dataset's keys and texts in a bucket (pure)
    management    users, rights and base URIs, beside a running server
      bucket_index  registering what a bucket has already
      foreign       buckets of other S3 servers, by dtool-s3's settings
      datadir         the data directory: version, lock, secrets

Imports nothing of dserverfs but `errors`, `limits`, `model` and
`printable`. Everything but the main thread of `serve` runs in waitress's worker threads.
"""
