"""The only package that imports Ray: a session, the stages on Ray Data, training on Ray Train and Ray Tune."""
