"""The engine directory: manifest, staging, locks, signatures, contract."""
