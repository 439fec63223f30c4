"""The embedded server of `dserverfs serve`: dservercore, SQLite or PostgreSQL, and SeaweedFS.

    serve           composition root: process, signals, waitress
    web             the web server and the app's first user
      bodies          waitress's reading of requests, each with its limit
        request_limits  the limits (pure)
    app             dservercore's Flask app, with the plugins and routes below
    management      users, rights and base URIs, beside a running server
    datadir         the data directory: version, lock, secrets, which database

    routes/         HTTP
      table           all routes of ours, each with right, handler and form of the body
      routing         from a row of it to a view: token, right, body, handler
      signed_urls     URLs to read datasets, and uploads
      multipart       uploads of large items in parts
      metadata        changes of README, tags, annotations, overlays, name
      publications    links by which dtool-http reads a dataset
      accounts        POST /token, /auth/..., GET /config/health
      logins          passwords checked, for these and for the pages
        guesses         limits of guessing passwords
      core_views      answers of our own to routes of dservercore
      request_check   the check of every request before its route
      answers         JSON, and the answer to each error

    pages/          HTML for a browser
      views           the pages, and their rows of the table of rights
      page_routing    from a row to a view: session, right, handler
      rendering       templates, in which all is escaped (pure)
      readme          a README's YAML as a tree (pure)

    database/       datasets and users, in dservercore's database and in buckets
      search          search plugin
        full_text       words of texts, found in FTS5 or by an index of PostgreSQL
      retrieve        retrieve plugin (README, manifest, annotations, tags)
        dataset_info    dates, counts and README as dservercore hands them on (pure)
        dataset_check   the rules for a dataset that is registered (pure)
      uploads         pending uploads
        upload_request  the body of an upload, checked (pure)
        upload_place    the place of an upload in its bucket
        part_uploads    uploads of items in parts that were begun
        completing      from a pending upload to a frozen dataset
      changes         changes of a dataset, in the bucket and in the database
        stored_metadata the changeable metadata in the bucket
      indexing        from a dataset in a bucket to the database
        bucket_index    all datasets of a bucket
      item_pages      items of a dataset, so many at a time
      passwords, tokens, sessions, links   of users
      sql             statements in the session of dservercore
        tables          the tables of ours, as they are
        dialects        what SQLite and PostgreSQL say differently (pure)
      locks           locks of requests, in all servers of one database
      connections     which database it is, and connections to it
      upgrading       brings a database to the present
        migrations      the steps to there
      trouble         what a failure of the database means
      forms           forms of bodies, and their refusal (pure)
      item_rules      rules for items, as tables (pure)

    store/          the bytes
      stores          the stores of all base URIs, and the places of datasets
        bucket          a store's objects, through one boto3 client
        signing         its description, and signed URLs (pure)
        layout          a dataset's keys and texts in a bucket (pure)
      settings        the operator's configuration, other S3 servers in it
      seaweedfs       the S3 server as a child process
        weed_config     its files
        die_with_parent its end
      signals         signals, as the main thread waits for them

A sub-room imports those below it; the server imports nothing of dserverfs but `base`.
Everything but the main thread of `serve` runs in waitress's worker threads.
"""
