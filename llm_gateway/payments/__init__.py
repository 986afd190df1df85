"""How orders are paid: a port for payment modes, the two that ship, and the checkout that uses them."""
