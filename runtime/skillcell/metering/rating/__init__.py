"""From usage to money: pure functions over integers and `Decimal`, which read no clock and no store.

`quantities` adds records up, `components` prices a quantity, `rate` makes statements, `payouts` shares them out,
`cost` prices one call, `plan_document` reads what an operator writes, `focus` tells it all in FOCUS' columns.
"""
