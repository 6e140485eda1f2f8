"""A run whose groups arrive from outside: an agent samples with a policy of the run and sends its groups here."""
