"""For tests: the contract suites that every adapter passes, shipped so that third parties can run them on theirs.

Subclass a suite in a test file, give it a fixture `rig` that yields a fresh rig, and run pytest:

    class TestMyBroker(ConsumerContract):
        @pytest.fixture
        def rig(self) -> Iterator[BrokerRig]:
            with MyServer() as server:
                yield MyRig(server)
"""
