"""Series: the stochastic `processes` that generate them and the ground `truth` measured on them."""
