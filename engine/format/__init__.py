"""How backups lie on a storage, version 1. `engine/FORMAT.md` gives every byte; this is the code that writes and reads it.

    names       object names                          crypto      keys derived, bytes sealed and opened
    compress    Zstandard within the format's rules   keys        a storage key under passphrases
    layout      header and footer of a segment        index       what a segment's frames hold
    frames      plaintext <-> stored bytes            placement   which frame goes into which segment
    writer      appends a segment to a sink           reader      checks a segment and hands out its frames
    documents   JSON with a digest                    manifest    what a backup is, and which files it needs

Nothing here knows a storage, a hypervisor or a clock: bytes go to a `Sink`, come from an `ObjectReader`, times are given.
"""
