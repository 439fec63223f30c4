"""dserverfs beside other file systems, on the same objects of the same store.

`python -m benchmark` with `scripts` on the path; `scripts/bench` sets all up and does that.

    content      datasets with the same random bytes in every run
    lab          the server, its store and the datasets in it
    peers        what is compared: mounts, and the floors below them
    mounts       one mount of a peer: its daemon's time and memory, and its end
    measuring    reading, checking, and what a measurement is
    machine      what it runs on
    rows         what is measured of one dataset beside the store, and how
    distant      the lab behind a line of ours: `delay_proxy`, and `second_server` before it
    distant_rows what is measured there
    registered   datasets that are only listed, of which nothing is uploaded
    many_rows    what is measured of them
    table        all rows of reading, in their order
    reading      the run through them
    publishing   how long it takes until a directory is a dataset, its rows and the run
    plan         what a run is to measure, and the files in which it keeps what it has
    options      the command's options
    plot         a picture of the table
    report       medians, ratios, tables and JSON; pure
"""
