"""A small call of every public function that computes."""
