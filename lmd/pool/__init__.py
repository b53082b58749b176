"""Who is in memory: instances, leases, TTL and eviction."""
