"""Prices and budgets: what calls cost, and how much that may be in a month."""

from servery.connection import Connection
from servery.gateway.v1 import billing_pb2 as pb
from servery.gateway.v1 import billing_pb2_grpc as pb_grpc


class Billing:
    """Prices of tenants, and budgets of tenants and keys, which are resource names here.

    Money is in billionths of the platform's currency.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.BillingServiceStub(connection.channel)

    def set_prices(self, prices: pb.Prices) -> pb.Prices:
        """Replace the prices of `prices.name`, a tenant or `tenants/-`, for calls from now on."""
        request = pb.SetPricesRequest(prices=prices)
        return self._connection.unary(self._stub.SetPrices, request).prices

    def prices(self, tenant: str) -> pb.Prices:
        """Return the prices that hold for a tenant; their name says whose they are."""
        request = pb.GetPricesRequest(name=tenant)
        return self._connection.unary(self._stub.GetPrices, request).prices

    def set_budget(self, budget: pb.Budget) -> pb.Budget:
        """Replace the budget of `budget.name`."""
        request = pb.SetBudgetRequest(budget=budget)
        return self._connection.unary(self._stub.SetBudget, request).budget

    def budget(self, owner: str) -> pb.GetBudgetResponse:
        """Return the budget of an owner, what was spent of it this month, and its alerts."""
        return self._connection.unary(self._stub.GetBudget, pb.GetBudgetRequest(name=owner))
