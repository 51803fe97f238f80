from kvm.conftest import boot, eventfd, kick_handler, kvm

__all__ = ["boot", "eventfd", "kick_handler", "kvm"]
