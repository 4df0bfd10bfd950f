from .audit_page import write_audit as write_audit
from .label_issues import LabelIssues as LabelIssues
from .label_issues import find_in_dataset as find_in_dataset
from .review import build_items as build_items
from .review import write_page as write_page

__all__ = [
    "LabelIssues",
    "build_items",
    "find_in_dataset",
    "write_audit",
    "write_page",
]
