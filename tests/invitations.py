"""What invitations are made of: an authority that signs nothing, and a code that takes nobody in."""

# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test -days 36500
AUTHORITY = """-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUEKl5VN4uAxyLdp0Lh5V9GSxZmjUwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjgxODEzMDFaGA8yMTI2MTEwNDE4MTMw
MVowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNPe
jCtw51pSfzd+HZkvapcF4Un+D9gd+1xhbhDFzsc2S7aIsONbyzyIRQs7t2gwfTOc
dljjA5Wrkw2Hp59SOoajUzBRMB0GA1UdDgQWBBSHXyVIHZpZj3EqeqoHNIysa+M2
LjAfBgNVHSMEGDAWgBSHXyVIHZpZj3EqeqoHNIysa+M2LjAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIEZPn+iCYcsOabc0GDLU7msp0yd+Khsm7tRc
vb4uaVqFAiB8HXQIFux2r3jZn4+HnZgDSFSVsBK62dKSX291ZjvC7A==
-----END CERTIFICATE-----
"""
CODE = "abcdefghijklmnopqrstuvwx23"
