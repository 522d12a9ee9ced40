"""What rating needs of the store: plans and who has which, periods, and usage added up for a statement."""
