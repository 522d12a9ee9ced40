"""The ledger's records as events for others: CloudEvents to HTTP sinks, and what files are made of."""
