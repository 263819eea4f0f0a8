"""NATS and Redis: subjects, topology, the job queue, the reply log, presence, and the process harness."""
