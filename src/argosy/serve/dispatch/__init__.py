"""From a request that was read to the replica that runs it, and back: admit, route, batch, link. No protocol is known here."""
