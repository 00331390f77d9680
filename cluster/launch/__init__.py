"""Launch and tear down clusters with Ray's launcher, provision AWS, and pass on spot notices.

boto3 and Ray are imported only when needed. Nothing here knows of training or serving.
"""
