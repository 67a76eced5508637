"""One running hash, read off at each block boundary; decimal numbers with a comma between them."""

import hashlib


def block_names(token_ids, block_size):
    names, digest = [], hashlib.blake2b(digest_size=16)
    for count, token_id in enumerate(token_ids, 1):
        digest.update(f"{token_id},".encode())
        if count % block_size == 0:
            names.append(digest.hexdigest())
    return names
