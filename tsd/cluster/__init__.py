"""The only package that imports Ray: the session, stages on Ray Data, training on Ray Train and Ray Tune."""
