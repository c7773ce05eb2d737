from .online import OnlineAlignment as OnlineAlignment
