"""From a proven student to a version in the registry, with its lineage and the gate before its promotion."""
